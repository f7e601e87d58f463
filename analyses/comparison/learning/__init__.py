"""When each run learned each token, and how alike the orders of runs are."""
