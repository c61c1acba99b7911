-- Logins of browsers. What proves one is stored as a hash only.

create table login (
    id text not null primary key,           -- the digest of what its link held
    key_id text not null,                   -- whose it is; it ends with the key
    cookie text unique,                     -- the digest of what its cookie holds; null: the link is unused
    created_at bigint not null,
    used_at bigint not null,                -- to within a minute
    expires_at bigint not null              -- of the link; once it is used, of the login
);
create index login_by_key on login (key_id, created_at);
create index login_by_end on login (expires_at);
