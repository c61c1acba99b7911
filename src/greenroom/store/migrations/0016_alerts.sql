-- Alerts have the states of `core.alerts`, and silences say of whom nobody is told.

create table alert_of_states (
    id text not null primary key,
    kind text not null,
    agent text,
    severity text not null check (severity in ('warning', 'critical')),
    state text not null check (state in ('pending', 'firing', 'acknowledged', 'resolved')),
    reason text not null,
    count bigint not null,                  -- how often it was raised while it fired
    first_at bigint not null,               -- it is pending, or fires, since; resolved: it fired since
    last_at bigint not null,
    acknowledged_at bigint,
    acknowledged_by text,
    resolved_at bigint                      -- of a pending one: when it was resolved before
);
insert into alert_of_states
select id, kind, agent, severity,
    case when state = 'firing' and acknowledged_at is not null then 'acknowledged' else state end,
    reason, count, first_at, last_at, acknowledged_at, acknowledged_by, resolved_at
from alert;
drop table alert;
alter table alert_of_states rename to alert;

create table silence (
    id text not null primary key,
    alert text,                             -- patterns; null: any at all
    kind text,
    agent text,
    severity text,
    comment text not null,
    created_by text not null,
    created_at bigint not null,
    until_at bigint not null
);
