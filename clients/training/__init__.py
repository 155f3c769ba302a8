"""What a training job is made of: trainers, parameter servers, monitors."""
