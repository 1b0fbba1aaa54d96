"""What fits images of one's own and this machine: a recipe, and the commands around it."""
