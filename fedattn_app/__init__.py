"""What runs on a node and in the two apps: model, data, local training, results."""
