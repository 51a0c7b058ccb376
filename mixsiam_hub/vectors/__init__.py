"""What embedding leaves behind: vectors on disk, and what is found in them."""
