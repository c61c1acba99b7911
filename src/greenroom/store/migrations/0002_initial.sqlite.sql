create trigger task_terminal_is_absorbing before update of state on task when old.finished_at is not null
begin select raise(rollback, 'terminal states are absorbing'); end;
create trigger task_event_is_append_only before update on task_event
begin select raise(abort, 'events are append-only'); end;
