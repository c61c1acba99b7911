create function task_terminal_is_absorbing() returns trigger language plpgsql as $$
begin raise exception 'terminal states are absorbing' using errcode = 'integrity_constraint_violation'; end $$;
create trigger task_terminal_is_absorbing before update of state on task for each row
    when (old.finished_at is not null)
    execute function task_terminal_is_absorbing();
create function task_event_is_append_only() returns trigger language plpgsql as $$
begin raise exception 'events are append-only' using errcode = 'integrity_constraint_violation'; end $$;
create trigger task_event_is_append_only before update on task_event for each row
    execute function task_event_is_append_only();
