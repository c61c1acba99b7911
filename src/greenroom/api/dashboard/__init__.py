"""The dashboard: pages that are rendered here, kept live by one stream each. `pages` is the table of them."""
