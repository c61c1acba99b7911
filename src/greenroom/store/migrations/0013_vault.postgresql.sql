-- Events stay append-only: all that may change of one is the key that its data is sealed with.
drop trigger task_event_is_append_only on task_event;
create trigger task_event_is_append_only before update on task_event for each row
    when (not (new.task = old.task and new.seq = old.seq and new.epoch = old.epoch and new.type = old.type
        and new.at = old.at and substr(new.data, 1, 1) = '\x01'::bytea))
    execute function task_event_is_append_only();
