"""One module per agent framework: each makes it look like our agent contract, inside the replica."""
