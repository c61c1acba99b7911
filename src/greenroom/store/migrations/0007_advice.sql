-- What the optimizer advises, what was done about it, and what came of that.

create table advice (
    id {key},
    rule text not null,
    agent text,                             -- null: it is about the node
    state text not null check (state in ('open', 'applied', 'withdrawn', 'measured')),
    what text not null,
    why text not null,
    expected text not null,
    metric text not null,                   -- what should become less ...
    value_before double precision not null,
    value_wanted double precision,          -- ... to this, if all goes well
    value_after double precision,
    outcome text not null,
    opened_at bigint not null,
    applied_at bigint,
    ended_at bigint
);
