"""How far the predicted distributions of runs are apart, and the phases that seeds go through."""
