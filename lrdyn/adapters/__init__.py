"""Algorithm 1: GaLore, ReLoRA and LoRA as values of one method, for the weights of any network."""
