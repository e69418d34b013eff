"""How the bundled models were made: the questions, the training mix, the builders and the loop."""
