"""What happens after the cut: fold constants, re-estimate batch norm, fine-tune."""
