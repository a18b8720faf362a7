"""What each layer would predict, and what each part adds to the answer's logit."""
