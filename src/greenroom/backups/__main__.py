"""``python -m greenroom.backups``: see `process`."""

from greenroom.backups import process

raise SystemExit(process.main())
