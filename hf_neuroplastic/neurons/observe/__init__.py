"""What is observed of neurons while a model trains."""
