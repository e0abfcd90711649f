"""x"""
import click
@click.command()
def inspect_video(): pass
