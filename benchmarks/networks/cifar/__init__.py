"""The families that papers train on CIFAR, as the field has them."""
