"""What a model believes inside: which words its layers would say, and where the pixels overtake the memory."""
