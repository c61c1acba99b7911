-- Webhooks: where tenants want to be told, and what has yet to be told there.

create table webhook (
    id text not null primary key,
    tenant text not null,
    url text not null,
    events text not null,                   -- each with a space before and behind
    description text not null,
    include_output boolean not null,
    state text not null check (state in ('enabled', 'disabled')),
    reason text not null,                   -- why it is disabled
    secret {bytes} not null,                -- encrypted, as the next
    old_secret {bytes},                     -- signs, too, until ...
    old_until bigint,
    failing_since bigint,                   -- nothing was taken since
    created_by text not null,
    created_at bigint not null
);
create index webhook_by_tenant on webhook (tenant, created_at);

create table delivery (
    seq {key},
    id text not null unique,                -- what receivers know it by, on every try
    webhook text not null,
    tenant text not null,
    type text not null,
    task text,                              -- what it tells of; its body is made of that row when it is sent
    state text not null check (state in ('pending', 'delivered', 'failed')),
    attempts integer not null default 0,
    due_at bigint not null,                 -- while it is being sent: when its sender must have died
    status integer,                         -- what the last try was answered ...
    error text,                             -- ... or why it was not
    created_at bigint not null,
    ended_at bigint
);
create index delivery_due on delivery (webhook, due_at) where state = 'pending';
create index delivery_by_webhook on delivery (webhook, seq);
create index delivery_by_age on delivery (created_at);

alter table task add column webhook text;           -- that its caller wants to be told by
