"""What acts: networks, heads and action ranges as functions of one parameter vector, and their lifting over seeds."""
