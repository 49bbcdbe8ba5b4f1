"""What a gradient gives away in closed form."""
