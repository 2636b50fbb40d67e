"""What stands on timm and torchvision and is imported only when it is needed: both take a second to import."""
