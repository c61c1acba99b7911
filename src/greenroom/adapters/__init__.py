"""What makes one agent framework look like our agent contract, inside the replica. Empty: a replica imports little."""
