-- The audit log: a chain of entries, checkpoints that sign them, and how far each export has come.

create table audit_entry (
    seq bigint not null primary key,
    time bigint not null,
    tenant text not null,
    actor text,                             -- null, like the others: erased, and its hash stands in "erased"
    source text,
    action text not null,
    object text,
    outcome text not null,
    request_id text not null,
    detail text,                            -- canonical JSON
    salts text not null,
    erased text not null,
    prev text not null,
    hash text not null
);
create index audit_by_tenant on audit_entry (tenant, seq);
create index audit_by_actor on audit_entry (actor, seq);
create index audit_by_action on audit_entry (action, seq);
create index audit_by_object on audit_entry (object, seq);

create table audit_checkpoint (
    number bigint not null primary key,
    time bigint not null,
    first bigint not null,
    last bigint not null,
    root text not null,
    head text not null,
    previous text not null,
    key text not null,
    signature text not null
);

-- One row: whoever appends locks it, so that two nodes never fork the chain.
create table audit_head (
    id integer not null primary key check (id = 1),
    seq bigint not null,
    hash text not null,
    sealed bigint not null,                 -- the last entry that a checkpoint covers
    checkpoint bigint not null,
    checkpoint_hash text not null
);

create table audit_cursor (
    place text not null primary key,        -- of the export
    seq bigint not null,
    checkpoint bigint not null,
    updated_at bigint not null
);

-- Acts of commands that ran without a node: the next node to start writes them to the log.
create table audit_pending (
    id text not null primary key,
    action text not null,
    object text not null,
    detail text not null
);

-- Whom intrusion detection has locked or slowed down.
create table security_measure (
    subject text not null primary key,
    kind text not null check (kind in ('throttle', 'lock')),
    rule text not null,
    reason text not null,
    since_us bigint not null,
    until_us bigint not null
);
