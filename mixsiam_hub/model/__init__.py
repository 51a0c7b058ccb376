"""The contract: what a model folder holds, and how it is found, read and checked."""
