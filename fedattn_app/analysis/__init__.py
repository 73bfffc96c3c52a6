"""What a trained model predicts and attends to."""
