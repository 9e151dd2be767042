"""What recorded runs tell of a model: order, certainty, what settles when. From trajectories alone, without torch."""
