-- Traces: where in which trace a task was asked for; see `core.traces`. Most have none.

alter table task add column trace text;
