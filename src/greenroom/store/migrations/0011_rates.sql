-- What callers have spent of their rates, all nodes together. Without it they begin anew, no more.

create table rate (
    name text primary key,                  -- a principal or a tenant
    full_at bigint not null                 -- when it has its whole quota again
) {clustered};
