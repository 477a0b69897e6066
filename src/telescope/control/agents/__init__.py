"""Agents: networks, action distributions and bounds as functions of one parameter vector, lifted over seeds."""
