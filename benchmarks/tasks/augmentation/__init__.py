"""What is done to images before a network reads them: on the device in batches, from files one by one."""
