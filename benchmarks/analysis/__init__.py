"""What is measured of networks beside their accuracy: quality of layers, similarity of blocks, linear probes."""
