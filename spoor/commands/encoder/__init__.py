"""Commands that train an encoder and measure it: pretrain, evaluate."""
