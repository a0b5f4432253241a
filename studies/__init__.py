"""Studies of one trained student that no config describes. Their records are under results/."""
