"""Dense and Mixture-of-Experts transformers, their text, and the command that trains them."""
