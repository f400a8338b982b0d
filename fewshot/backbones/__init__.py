"""Networks for few-shot learning: plain `nn.Module`s from examples to N logits."""
