-- Encryption at rest: the data keys, wrapped, and what the store says of itself, signed by the key that wraps them.

create table data_key (
    id text not null primary key,           -- 16 hexadecimal digits; sealed values begin with it
    tenant text not null,
    purpose text not null check (purpose in ('seal', 'index')),
    kek text not null,                      -- the id of the key that it is wrapped by
    wrapped {bytes} not null,
    messages bigint not null,               -- at most so many are sealed with it: counted ahead, a batch at a time
    created_at bigint not null,
    retired_at bigint                       -- since when it only opens
);
create unique index data_key_active on data_key (tenant, purpose) where retired_at is null;

create table vault (
    id integer not null primary key check (id = 1),
    kek text not null,
    wrapped {bytes},                        -- that key itself, by a key management service; null: a file has it
    record {bytes} not null,                -- whether all is sealed, signed
    is_stale boolean not null,              -- something may not be sealed with today's keys: it is looked for
    rotated_at bigint not null
);
