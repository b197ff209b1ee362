"""What happens after the cut: fold constants, re-fit consumers, re-estimate batch norm, fine-tune."""
