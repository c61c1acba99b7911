"""What agent authors and callers import: `context` and `client`. Empty: replicas import it too."""
