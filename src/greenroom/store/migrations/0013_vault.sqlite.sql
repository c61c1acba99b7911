-- Events stay append-only: all that may change of one is the key that its data is sealed with.
drop trigger task_event_is_append_only;
create trigger task_event_is_append_only before update on task_event
when not (new.task = old.task and new.seq = old.seq and new.epoch = old.epoch and new.type = old.type
    and new.at = old.at and substr(new.data, 1, 1) = x'01')
begin select raise(abort, 'events are append-only'); end;
