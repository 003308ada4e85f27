"""What a result is worth: arms, evaluation, intervals, summaries."""
