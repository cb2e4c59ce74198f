"""How many replicas a load takes: the cost of steps, a simulation of replicas, and a plan."""
