-- Keys: what narrows each of them, who has created it, and when it was used last.

alter table principal add column scopes {bytes};            -- a JSON list of grants; null: all that its role may do
alter table principal add column created_by text;           -- the principal's id; null: the node itself
alter table principal add column last_used_at bigint;       -- within a minute
