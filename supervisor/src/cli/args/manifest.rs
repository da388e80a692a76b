//! What the verbs about manifests are given.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    #[command(subcommand)]
    pub(crate) verb: ManifestVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ManifestVerb {
    /// Print the JSON schema of manifests, for editors
    #[command(after_help = "Example:\n  labyard manifest schema > playground.schema.json")]
    Schema,
    /// Check manifests without making anything
    #[command(after_help = "\
Ends with 2 where one breaks a rule. Whether images, kernels and room are there is for `up` to find out.

Examples:
  labyard manifest validate lab.yaml
  labyard manifest validate *.yaml --json | jq -r '.manifests[] | select(.valid | not) | .message'")]
    Validate {
        /// The manifests
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Print what a manifest comes to, with every default and address filled in
    #[command(after_help = "\
Examples:
  labyard manifest show lab.yaml
  labyard manifest show lab --json | jq '.playground.machines[].network'")]
    Show {
        /// A file, or a lab
        #[arg(value_name = "FILE|LAB")]
        of: String,
        /// Print JSON in place of YAML
        #[arg(long)]
        json: bool,
    },
    /// Print where two manifests differ in what they come to, however they are written
    #[command(after_help = "\
Ends with 1 where they differ.

Examples:
  labyard manifest diff old.yaml new.yaml
  labyard manifest diff lab lab.yaml --json | jq -r '.differences[].path'")]
    Diff {
        /// A file, or a lab
        #[arg(value_name = "FILE|LAB")]
        from: String,
        /// A file, or a lab
        #[arg(value_name = "FILE|LAB")]
        to: String,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
}
