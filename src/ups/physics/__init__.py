"""Physics: what each equation is, how its random initial states are drawn, and the reference solvers."""
