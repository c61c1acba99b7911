-- Notifications: what receivers of alerts have yet to be told, and how each receiver does; see `store.notifications`.

create table notification (
    receiver text not null,                 -- '' while it is not yet known who wants it
    alert text not null,
    event text not null check (event in ('firing', 'acknowledged', 'resolved')),
    turn integer not null default 1,        -- grows with each change and each claim: fences what a sender writes
    attempts integer not null default 0,    -- begun, of what is owed now
    owed_at bigint not null,                -- since when this is owed
    due_at bigint,                          -- while it is being sent: when its sender must have died; null: nothing is
    told_at bigint,                         -- the receiver knows that it fires, since then
    primary key (receiver, alert)
);
create index notification_due on notification (receiver, due_at);

create table receiver (
    name text not null primary key,
    tried_at bigint not null,
    told_at bigint,                         -- it took something the last time
    failing_since bigint,
    failures integer not null default 0,    -- tries without success since then
    status integer,                         -- what the last try was answered ...
    error text                              -- ... or why it was not
);
