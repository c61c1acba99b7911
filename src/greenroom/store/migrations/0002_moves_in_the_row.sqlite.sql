drop trigger task_terminal_is_absorbing;
create trigger task_terminal_is_absorbing before update of state on task
when old.state in ('succeeded', 'failed', 'cancelled', 'expired')
begin select raise(rollback, 'terminal states are absorbing'); end;
