"""The `greenroom` command: talks to a node through `sdk.client`, and starts one with `greenroom up`."""
