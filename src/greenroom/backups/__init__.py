"""Backups: the whole store and the node's few files, encrypted and deduplicated, in a folder or a bucket, and back.

`creating` and `restoring` are what happens, `archive` is what lies at a *place* (`places`, `bucket`), `sealing` is the
key, `chunks` cuts rows into what is stored. Reads and writes block: these run in processes and threads of their own
(`process` is how a node has one made). No module here knows a database driver.
"""
