"""How weights that matter to old tasks are found and kept."""
